"""The hardware seam: processor, NVIDIA's CUDA and AMD's HIP behind one interface.

:mod:`~miles_core.accelerator.vendors` says what a machine has without a GPU library; :mod:`~miles_core.accelerator.device` needs
PyTorch.
"""
