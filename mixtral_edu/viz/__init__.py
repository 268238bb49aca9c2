"""Figures and widgets for the lessons. Import the module you need, for example `from mixtral_edu.viz import router`.

`style` defines the look of all figures, and `widgets` holds the interactive ones. `diagram` draws the model; `router`
shows which expert each token goes to. The other modules are named after the subject of their lesson: `masks`, `cache`,
`rope` …
The model imports nothing from here. Importing this package alone loads no plotting library.
"""
