"""A cluster on one machine: nodes are network namespaces with real SSH, AWS is a mock. See README.md."""
