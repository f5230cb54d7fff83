"""Before anything imports datasets: nothing is asked of the network."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "DISABLE_MULTIPROC": "1"}
