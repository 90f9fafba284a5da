"""The policy node and the simulated robot on plain Cyclone DDS, with ROS 2's wire types and topic names.

Topics (``~`` is ``/m2distill_policy``; a DDS topic is the name with ``rt`` before it):

=================================== ============================ =========== =========================================
topic                               type                         direction   what
=================================== ============================ =========== =========================================
/camera/agentview/image_raw         sensor_msgs/Image            to policy   rgb8, bgr8, mono8, yuv422, bayer, ...
/camera/eye_in_hand/image_raw       sensor_msgs/Image            to policy   the contract's views name the topics
/camera/agentview/camera_info, ...  sensor_msgs/CameraInfo       to policy   compared with the contract's field of view
/joint_states                       sensor_msgs/JointState       to policy   rad and m, matched by joint name
/end_effector_pose                  geometry_msgs/PoseStamped    to policy   optional; without it no ~/target_pose
~/instruction                       std_msgs/String              to policy   transient local
~/emergency_stop                    std_msgs/Bool                to policy   pressed: halt; released: halt until enabled
~/dead_man                          std_msgs/Bool                to policy   only with watch.dead_man
~/episode                           m2distill_msgs/Episode       to policy   lockstep only, see below
~/action                            m2distill_msgs/PolicyAction  from policy the answer and its whole mixture
~/twist                             geometry_msgs/TwistStamped   from policy m/s and rad/s by the contract's response
~/target_pose                       geometry_msgs/PoseStamped    from policy set-point from the pose
/gripper_command                    control_msgs/GripperCommand  from policy on change, with a dead band
~/status                            m2distill_msgs/PolicyStatus  from policy every cycle
/diagnostics                        diagnostic_msgs/...Array     from policy once a second
=================================== ============================ =========== =========================================

In real time, lost images and joint states are not sent again (best effort); everything else is reliable.

Lockstep is an exchange of reliable messages that does not depend on the wall clock:

1. The robot waits until every topic has a peer.
2. The robot resets its environment and publishes ``~/episode``: number, instruction and random stream. The policy
   clears its window, begins that random stream, and answers with one ``~/status`` of the same stamp and episode.
3. The robot publishes one observation, all messages with one stamp. The policy answers with commands, one ``~/action``
   and, last, one ``~/status``, all with that stamp. DDS does not keep the order of different topics, so the status says
   whether commands were sent, and how many gripper commands there have been.
4. The robot steps its environment and continues with 3, or with 2 when the rollout is over. Stamps never go back.

Two processes do not discover each other's endpoints at the same time. So ``~/episode`` and ``~/status`` keep their last
message for late readers, and are the last writer and reader that the robot creates: once both have been received, all
endpoints are connected.

A process that receives nothing for ``--timeout`` seconds stops and names the missing topic.

Cyclone DDS 11.0.1 is the only release on PyPI with wheels for Python 3.10 to 3.12. It is compatible with Cyclone DDS
0.10, which is part of ROS 2 Jazzy, if types are written as :mod:`m2distill_policy.dds.types` describes. Fast DDS is
untested.
"""
