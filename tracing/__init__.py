r"""The vLLM plugin: spans of queue, prefill and decode, one log line per request, request metrics.

How a request flows, one way:

    vLLM's event loop                         drain thread
    middleware --\
                  exchange --> one append --> record --> metrics, request line, audit log, spans --> OTLP
    hooks -------/

Nothing on the event loop formats, sends or waits. Nothing here raises into vLLM.
"""
