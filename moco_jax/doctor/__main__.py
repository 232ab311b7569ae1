"""The examination, as `python -m moco_jax.doctor`; its flags are in `cli/doctor.py`."""

from moco_jax.cli.doctor import run

if __name__ == "__main__":
    run()
