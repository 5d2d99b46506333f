"""A machine to try the deploy on: a container with systemd and sshd, reached over SSH as a sudo user like a
VPS.

`python -m sandbox demo` deploys to it; the container tests start their own. What the machine would download
from the internet (llama.cpp's source, a model) comes from a local hub instead, over the same protocols.
"""
