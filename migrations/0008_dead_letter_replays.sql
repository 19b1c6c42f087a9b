-- What `analytics-server dead-letters replay` has to know of a letter.
--
-- payload_is: a letter of the first event of a batch message and one of a whole
-- batch message that cannot be read have the same subject and the same
-- batch_index, and are sent again differently.
-- replayed_at: set by a mutation, of few letters and by hand. Measured on 26.7: an
-- insert that is repeated after mutations of its part, after its rows were deleted and
-- after a merge is still dropped, since its token is remembered by the table and not
-- looked for in the parts. No DEFAULT: a repeated insert must be the same one.
ALTER TABLE dead_letters
    ADD COLUMN IF NOT EXISTS payload_is LowCardinality(String) COMMENT 'message: payload is a whole message''s; event: it is one event of a batch message; empty in letters from before this column',
    ADD COLUMN IF NOT EXISTS replayed_at DateTime64(3, 'UTC') COMMENT 'When `dead-letters replay` published it again; 1970 while it has not' CODEC(ZSTD(1));
