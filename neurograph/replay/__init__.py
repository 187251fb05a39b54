"""Running a model from its recording: watching, recording, planning and replaying."""
