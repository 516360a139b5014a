"""What the family file says of its members that no measurement can: licence and languages, for the model cards."""

from typing import Self

from pydantic import field_validator, model_validator

from kinfolk.card.licenses import LANGUAGE, LICENSES
from kinfolk.family.base import Spec
from kinfolk.family.faults import MisfitError, did_you_mean


class CardFields(Spec):
    """Licence and languages; nothing is assumed where nothing is stated."""

    license: str | None = None
    """An identifier that the Hugging Face hub knows, such as apache-2.0."""
    license_name: str | None = None
    license_link: str | None = None
    """Name and address of the licence "other"."""
    languages: list[str] = []
    """ISO 639 codes of the training text, such as en; also code and multilingual."""

    @field_validator("license")
    @classmethod
    def _known(cls, license: str | None) -> str | None:
        if license is not None and license not in LICENSES:
            fix = did_you_mean(license.lower(), LICENSES, "known")
            raise MisfitError(f"the hub has no licence {license!r}", fix=f"{fix} For any else: other, and its name")
        return license

    @field_validator("languages")
    @classmethod
    def _codes(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if not LANGUAGE.fullmatch(language):
                raise MisfitError(f"{language!r} is no ISO 639 code", fix="write such as en, de or multilingual")
        return languages

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.license == "other") != (self.license_name is not None):
            raise MisfitError(
                "the licence other has a name, and no known licence has one",
                field="license_name",
                fix="give license: other together with license_name, and license_link if there is one",
            )
        return self
