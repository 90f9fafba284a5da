"""The policy node without its transport: what it does with messages, when a cycle runs, and what it publishes.

Plain DDS and ROS 2 are each a thin layer around :class:`m2distill_policy.node.loop.PolicyLoop`, so both behave alike.
Needs what the runtime needs. Import what you need from its own file; this package imports nothing by itself.
"""
