"""For every pytest run: kernels that nbval starts inherit the environment in which the book is executed."""

import os

from book.build import KERNEL_ENV

os.environ.update(KERNEL_ENV)
