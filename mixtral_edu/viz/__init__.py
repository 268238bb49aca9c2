"""Figures and widgets of the lessons; import the module you need, for example `from mixtral_edu.viz import router`.

`style` holds the one look and `widgets` what all interactive figures share; `diagram` draws the model, `router` shows
which expert got which token. The other modules are named for their lesson's subject: `masks`, `cache`, `rope` …
Nothing here is imported by the model, and importing this package alone loads no plotting library.
"""
