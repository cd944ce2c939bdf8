"""What the ranks of a test world run, one module for each thing that is exercised.

A test names a scenario by module and function: `world.run("scenarios.training:compare", family="llama")`. Every rank
calls the function with its own rank and these arguments, and the test gets what each returned: plain data.
"""
