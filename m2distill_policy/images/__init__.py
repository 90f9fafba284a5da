"""Convert images from a camera's message to the network's input.

:mod:`~m2distill_policy.images.encodings` converts raw and compressed messages to RGB,
:mod:`~m2distill_policy.images.jpeg_png` decodes JPEG and PNG and refuses damaged data, and
:mod:`~m2distill_policy.images.preprocess` crops and resizes. A transport only unpacks its messages.
"""
