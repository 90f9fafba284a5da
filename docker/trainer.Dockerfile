# A machine that collects demonstrations, trains and evaluates, on the CPU or an NVIDIA GPU.
#   docker build -f docker/trainer.Dockerfile -t m2distill-trainer .
#   docker run --rm --gpus all -v "$PWD/runs:/home/trainer/runs" m2distill-trainer demo
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake libosmesa6 libegl1 \
    && rm -rf /var/lib/apt/lists/*
# Without a GPU, pass the index of CPU builds of torch: --build-arg PIP_ARGS="--extra-index-url ..."
ARG PIP_ARGS=""
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir ${PIP_ARGS} ".[train,sim]" \
    && pip install --no-cache-dir --no-deps -r requirements/sim-nodeps.txt
RUN useradd --create-home trainer && mkdir /home/trainer/runs && chown trainer /home/trainer/runs
USER trainer
WORKDIR /home/trainer
ENTRYPOINT ["m2distill"]
