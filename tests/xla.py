"""XLA's flags of test processes."""

import importlib.metadata

# Most of the time of the tests goes into compiling programs that run once. LLVM goes over them
# lightly, and with jaxlib 0.10 XLA's older emitters write the loops: together they take a quarter
# of the CPU time that the defaults do, for the same sums and products. Of jaxlib 0.12, which has
# no such emitters (an unknown flag ends the process), programs of level 0 are less exact than the
# tests ask: a gradient of 1e-22 in float32 was off by its own size.
OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
QUICK = [f"--xla_backend_optimization_level={0 if OLD else 1}"]
QUICK.append("--xla_llvm_disable_expensive_passes=true")
if OLD:
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


# Where a program runs so often that its speed counts for more.
MANY_STEPS = ["--xla_backend_optimization_level=1"]


def flags(devices, many_steps=False):
    """Flags for so many CPU devices, whose programs are compiled quickly."""
    chosen = MANY_STEPS if many_steps else QUICK
    return " ".join([*chosen, f"--xla_force_host_platform_device_count={devices}"])
