"""How fast training and studies are, against loops without a platform and against other programs. Run, not imported."""
