"""XLA's flags of test processes."""


def flags(devices):
    """Flags for so many CPU devices, and LLVM's light passes.

    Most of the time of the tests goes into compiling programs that run once.
    """
    return f"--xla_backend_optimization_level=1 --xla_force_host_platform_device_count={devices}"
