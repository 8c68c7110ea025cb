"""Steps that clean documents: rules that remove some with a reason, and maps that change their text."""
