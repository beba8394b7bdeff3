"""What this project keeps."""

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=200)
    answer_to = models.ForeignKey("self", models.CASCADE, null=True)
