"""XLA's flags of test processes."""

import importlib.metadata

# Most of the time of the tests goes into compiling programs that run once. LLVM goes over them as
# lightly as it can, and XLA's older emitters write the loops: together they take a quarter of the
# CPU time that the defaults do, for the same sums and products.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# jaxlib 0.12 has no such flag, and an unknown one ends the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


# Where a program runs so often that its speed counts for more.
MANY_STEPS = ["--xla_backend_optimization_level=1"]


def flags(devices, many_steps=False):
    """Flags for so many CPU devices, whose programs are compiled quickly."""
    chosen = MANY_STEPS if many_steps else QUICK
    return " ".join([*chosen, f"--xla_force_host_platform_device_count={devices}"])
