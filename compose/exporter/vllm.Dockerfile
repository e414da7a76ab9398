# vLLM with the plugin, from the same source.tar.gz as the exporter.
ARG VLLM_BASE_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_BASE_IMAGE}
ADD source.tar.gz /opt/vllm-vitals-source
# What vLLM has installed stays: the plugin needs nothing that vLLM does not bring.
RUN python3 -m pip --disable-pip-version-check --no-cache-dir install '/opt/vllm-vitals-source[tracing]' \
    && mkdir -p /cache \
    && chown 1000:0 /cache \
    && vllm-vitals version
USER 1000:0
