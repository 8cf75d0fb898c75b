"""The Triton kernels. Importing this imports triton; nothing here compiles or calls a driver before a launch."""
