"""The page that the daemon serves: rooms behind one guard, one layout, one process (`swarmd run web`).

`server` runs it, `guard` decides who gets in, `layout` draws what all rooms share, `rooms` lists them; each room is a
module with its routes, and files in `static/`. A room is one more client: it knows what any client may know.
"""
