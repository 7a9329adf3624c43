"""The schema as SQLAlchemy models, for the migrations, ``examsend db check`` and the tests.

The passes use SQL statements (``queue``) and do not import this package, because mapping the classes takes a tenth of a second.
No patient name, id, birth date or accession number is stored.
"""

from __future__ import annotations

from examsend.db.tables import announcements as announcements
from examsend.db.tables import batches as batches
from examsend.db.tables import operating as operating
from examsend.db.tables import proof as proof
from examsend.db.tables.base import Base as Base
