"""Suite ``tabletop``: five tasks on one table, from what robosuite's wheel ships.

Every object is on the table in every task and objects swap places, so only the instruction tells tasks apart.
"""
