"""The dry run behind `lotlip-data plan`: lists, throughput, cost, storage."""
