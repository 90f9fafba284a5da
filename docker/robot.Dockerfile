# A robot that runs a bundle with 'm2distill serve', without ROS 2, torch or a simulator.
#   docker build -f docker/robot.Dockerfile -t m2distill-robot .
#   docker run --rm --network host -v "$PWD/bundles:/bundles:ro" m2distill-robot serve /bundles/first --shadow
FROM python:3.12-slim
# Builds ruckig where it has no wheel (aarch64).
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir . && m2distill serve --help >/dev/null
RUN useradd --create-home robot
USER robot
WORKDIR /home/robot
ENTRYPOINT ["m2distill"]
