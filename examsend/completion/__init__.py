"""When a study is complete: the rules, and later what announcements (MPPS, a manifest, the archive) say."""
