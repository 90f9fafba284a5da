"""Fuzzing of every door through which bad input may come: ``make fuzz``.

A *door* is a way into the product: a bundle, a demonstration file, a recording, a configuration, DDS messages, ROS
messages. An *input* is the bytes that come through it; :mod:`tests.fuzz.invariant` says what must hold for each.

Three engines make inputs from the seeds in ``tests/corpus`` and those that a door makes itself:

* ``hypothesis`` draws structured inputs and reduces those that fail;
* ``atheris`` (libFuzzer) keeps inputs that reach new code and changes them further, where it has a wheel;
* ``mutate`` changes seeds without looking at coverage: in ``make test``, and in place of atheris.

All of them use the same generators, written against :class:`tests.fuzz.choice.Choice`.
"""
