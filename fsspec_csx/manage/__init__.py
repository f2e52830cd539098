"""Operations on whole checkpoints: copy, list, compare, verify, convert and delete."""
