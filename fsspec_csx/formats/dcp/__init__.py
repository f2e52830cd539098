"""Checkpoints of torch.distributed.checkpoint: a folder of shards and a manifest, on any filesystem."""
