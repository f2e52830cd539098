"""The files of torch.save: zip archives of a pickle and the bytes of the tensors."""
