"""The application's side of the house: ports (`protocol`), the real ones (`local`) and recorded ones (`fake`)."""
