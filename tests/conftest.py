"""One thread a test process: small tensors gain nothing from more, and parallel test processes would contend."""

import torch

torch.set_num_threads(1)
