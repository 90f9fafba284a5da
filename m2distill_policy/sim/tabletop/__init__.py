"""Suite ``tabletop``: five tasks on one table, made of models in the wheel of robosuite.

All objects are on the table in every task, and they swap places. So only the instruction distinguishes the tasks.

To add a task, add it to :data:`tasks.TASKS`. A new kind of task also needs an entry in :data:`tasks.GOALS` (when is it
done?) and one in :data:`expert.SKILLS` (how is it demonstrated?).
"""
