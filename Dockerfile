# An image to pretrain in: on CPUs as it is, on NVIDIA GPUs or TPUs with one build argument.
#
#   docker build --tag moco_jax .                              # CPU
#   docker build --tag moco_jax:gpu --build-arg EXTRA=gpu .    # or EXTRA=tpu
#   docker run --rm --gpus=all --volume=$PWD/photos:/photos:ro --volume=$PWD/runs:/runs moco_jax:gpu \
#       moco-pretrain --config=folder --config.data_dir=/photos --workdir=/runs/mine
FROM python:3.13-slim
ARG EXTRA=""
WORKDIR /moco_jax
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY configs configs
COPY moco_jax moco_jax
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"
WORKDIR /runs
CMD ["moco-pretrain", "--help"]
