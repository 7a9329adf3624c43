-- Roles for examsend with the least that each command needs. Run it as a superuser, or as the owner of the database with
-- CREATEROLE, in examsend's database, after `examsend db upgrade`; run it again after each upgrade of examsend.
--
--   psql -v ON_ERROR_STOP=1 -d examsend -f roles.sql
--
-- The roles cannot log in themselves. Make a user for each host or service, and grant it what it does:
--
--   CREATE ROLE ct_gateway LOGIN PASSWORD '...' IN ROLE examsend_ingest;
--   CREATE ROLE ct_sender  LOGIN PASSWORD '...' IN ROLE examsend_send;
--   CREATE ROLE helpdesk   LOGIN PASSWORD '...' IN ROLE examsend_status;
--
-- | role              | commands                                                                                        |
-- |-------------------|-------------------------------------------------------------------------------------------------|
-- | examsend_status   | status, explain, metrics, destination list and show, db current and check; reads only           |
-- | examsend_ingest   | ingest, finalize, expect, rejected, listen                                                      |
-- | examsend_send     | send                                                                                            |
-- | examsend_confirm  | confirm                                                                                         |
-- | examsend_operator | all of these, and retry, hold, unhold, cancel, prioritize, reroute, destination, prune          |
-- | examsend_owner    | db upgrade: owns the tables                                                                     |

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY[
        'examsend_owner', 'examsend_status', 'examsend_ingest', 'examsend_send', 'examsend_confirm', 'examsend_operator']
    LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END
$$;

-- The schema belongs to its owner alone: nobody else makes, changes or drops a table.
GRANT USAGE, CREATE ON SCHEMA public TO examsend_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
    LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO examsend_owner', found.relname);
    END LOOP;
    FOR found IN
        SELECT p.oid::regprocedure AS signature FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO examsend_owner', found.signature);
    END LOOP;
END
$$;
REVOKE ALL ON ALL TABLES IN SCHEMA public
    FROM PUBLIC, examsend_status, examsend_ingest, examsend_send, examsend_confirm, examsend_operator;

-- Everybody reads everything. No secret is in the database: of keys and passcodes it has the paths of files.
GRANT USAGE ON SCHEMA public TO examsend_status;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO examsend_status;
GRANT examsend_status TO examsend_ingest, examsend_send, examsend_confirm;

-- Each pass is on record.
GRANT INSERT, UPDATE ON command_passes TO examsend_ingest, examsend_send, examsend_confirm;

-- Files become instances of batches, and studies become complete. A destination's row is locked while files are registered for
-- it, for which PostgreSQL asks for the right to change one column.
GRANT UPDATE (told_at) ON storage_backend_configs TO examsend_ingest;
GRANT INSERT, UPDATE, DELETE ON exam_batches TO examsend_ingest;
GRANT INSERT, UPDATE ON exam_batch_instances TO examsend_ingest;
GRANT INSERT, UPDATE, DELETE ON exam_batch_instance_aliases, rejected_files TO examsend_ingest;
GRANT INSERT, UPDATE ON study_series TO examsend_ingest;
GRANT INSERT, UPDATE ON study_expectations, expectation_studies TO examsend_ingest;
GRANT INSERT, UPDATE, DELETE ON expected_series, expected_instances TO examsend_ingest;
GRANT INSERT ON events TO examsend_ingest;

-- Which directories were ingested: a source is let go only below one of them.
GRANT INSERT ON ingested_directories TO examsend_ingest;

-- `listen` takes the reports of archives. Who may do that may say what an archive has confirmed: where sources are let go (--after),
-- give `listen` a host and a user of its own.
GRANT UPDATE (reports, reported_at) ON commitment_requests TO examsend_ingest;
GRANT UPDATE ON batch_confirmations TO examsend_ingest;
GRANT INSERT, UPDATE ON instance_confirmations TO examsend_ingest;

-- Batches are claimed and sent; a destination is held, or stores again. Its address, its settings and whether it is enabled are
-- not the sender's to change, nor is which instance belongs to which batch.
GRANT UPDATE ON exam_batches, exam_batch_instances TO examsend_send;
GRANT INSERT, UPDATE ON send_attempts TO examsend_send;
GRANT INSERT, UPDATE ON delivery_totals, status_totals, duration_totals TO examsend_send;
GRANT INSERT ON events TO examsend_send;
-- With SENT begins what the archive is asked.
GRANT INSERT ON batch_confirmations TO examsend_send;
GRANT UPDATE (consecutive_failures, held_until, held_code, held_reason, down_since, last_success_at, told_at, told_since)
    ON storage_backend_configs TO examsend_send;

-- Archives are asked, and what they answer is written. What they do not have is put in line again, in a batch that follows the one
-- that was SENT, or in the PENDING one of the study, of which what was recorded as not to be sent is released. Sources that go are
-- on record before. Rows of instances and destinations are locked meanwhile, for which PostgreSQL asks for the right to change one
-- column.
GRANT INSERT, UPDATE ON batch_confirmations, instance_confirmations TO examsend_confirm;
GRANT INSERT, UPDATE (status, reports, reported_at) ON commitment_requests TO examsend_confirm;
GRANT INSERT, UPDATE (removed_at, kept_at, move_to) ON source_removals TO examsend_confirm;
GRANT UPDATE (confirm_held_until, confirm_failures, confirm_problem) ON storage_backend_configs TO examsend_confirm;
GRANT INSERT, DELETE ON exam_batches TO examsend_confirm;
GRANT UPDATE (status, last_instance_at, grown, check_at, ready_at, ready_reason, next_attempt_at) ON exam_batches TO examsend_confirm;
GRANT INSERT, UPDATE (outcome) ON exam_batch_instances TO examsend_confirm;
GRANT INSERT ON exam_batch_instance_aliases TO examsend_confirm;
GRANT INSERT ON events TO examsend_confirm;

GRANT examsend_ingest, examsend_send, examsend_confirm TO examsend_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO examsend_operator;
REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM examsend_operator;
