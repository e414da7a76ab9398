"""What every long-running part needs and nobody should write twice: exchanges with a deadline, threads, log lines."""
