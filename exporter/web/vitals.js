<!doctype html><title>vllm-vitals</title>
