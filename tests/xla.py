"""XLA's flags of test processes."""

# Most of the time of the tests goes into compiling programs that run once. LLVM goes over them as
# lightly as it can, and XLA's older emitters write the loops: together they take a quarter of the
# CPU time that the defaults do, for the same sums and products.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)


def flags(devices):
    """Flags for so many CPU devices, whose programs are quickly compiled."""
    return " ".join((*QUICK, f"--xla_force_host_platform_device_count={devices}"))
