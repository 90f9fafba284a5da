"""The policy node, whatever carries its messages: what to do with what arrives, when a cycle runs, what it says.

Plain DDS and ROS 2 each put a thin shell around :class:`m2distill_policy.node.loop.PolicyLoop`, so both behave alike.
Needs what the runtime needs. Import what you need from its own file; this package imports nothing by itself.
"""
