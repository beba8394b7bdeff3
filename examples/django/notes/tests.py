"""How a project with replicas is tested: `python manage.py test`."""

from django.test import TestCase, TransactionTestCase

from notes.models import Note


class InATransaction(TestCase):
    def test_what_was_written_is_read(self) -> None:
        Note.objects.create(text="a")
        self.assertEqual(self.client.get("/notes").json()["notes"], ["a"])


class WithReplicas(TransactionTestCase):
    databases = {"default", "replica1", "replica2"}

    def test_what_was_written_is_read(self) -> None:
        self.client.post("/notes", "a", content_type="text/plain")
        Note.objects.create(text="b")
        self.assertEqual([note.text for note in Note.objects.order_by("id")], ["a", "b"])
