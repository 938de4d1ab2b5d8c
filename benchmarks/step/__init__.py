"""Steps of the whole network, in training and inference: the parts of python -m benchmarks.bench_step."""
