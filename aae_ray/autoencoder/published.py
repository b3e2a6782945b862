"""What is published of a trained model.

Shapes: B batch, C channels, H height, W width, Z code, K classes or clusters.
"""

from torch import Tensor, nn

from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import encode

# What an encoder answers with, the last two where a posterior or a task has them.
CODE, SIGMA, PROBABILITIES = "code", "sigma", "probabilities"


class Encoder(nn.Module):
    """Images x_BCHW in [0, 1] in; out of it by name the code z_BZ, its sigma_BZ, and the probabilities y_BK.

    It draws nothing: the code is that at zero noise, which of a Gaussian posterior is the mean.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        names = ("trunk", "style_head", "label_head")
        self.players = nn.ModuleDict({name: model.networks[name] for name in names if name in model.networks})
        self.noise_dim = model.noise_dim

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        noise_BE = x_BCHW.new_zeros(x_BCHW.shape[0], self.noise_dim) if self.noise_dim else None
        code = encode(dict(self.players.items()), x_BCHW.flatten(1), noise_BE)
        answer = {CODE: code.z_BZ}
        if code.log_variance_BZ is not None:
            answer[SIGMA] = (0.5 * code.log_variance_BZ).exp()
        if code.label_logits_BK is not None:
            answer[PROBABILITIES] = code.label_logits_BK.softmax(1)
        return answer
