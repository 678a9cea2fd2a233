"""What the kernels compile to, for GPUs that need not be there, and the least that a workload costs on them.

`run.inspect_kernels` does the work, `console` prints it; `compilation` compiles what is launched instead of
launching it, `devices` knows the targets' limits and the vendors' data sheets.
"""

import torch

#: Types of the tokens, by the names that the command line takes.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
