"""Tables, engine, migrations, embedded server: nothing here decides."""
