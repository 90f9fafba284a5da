"""Suite ``tabletop``: five tasks on one table, made of models that robosuite's package contains.

In every task all objects are on the table, at random places. So only the instruction distinguishes the tasks.

To add a task, add it to :data:`tasks.TASKS`. A new kind of task also needs an entry in :data:`tasks.GOALS` (when is its
goal reached?) and an entry in :data:`expert.SKILLS` (how is it demonstrated?).
"""
