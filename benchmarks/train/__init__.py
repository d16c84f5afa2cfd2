"""What `benchmarks.train_cpu` and `benchmarks.train_gpu` share: rows, jobs, the candidates, the machine's own speed."""
