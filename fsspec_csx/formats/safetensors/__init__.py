"""The safetensors format: https://github.com/huggingface/safetensors#format"""
