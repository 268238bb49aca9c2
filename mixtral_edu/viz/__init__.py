"""Figures and widgets of the lessons; import the module you need, for example `from mixtral_edu.viz import router`.

`style` holds the one look, `diagram` draws the model, `router` shows which expert got which token, `widgets` makes
figures interactive. Nothing here is imported by the model, and importing this package alone loads no plotting library.
"""
