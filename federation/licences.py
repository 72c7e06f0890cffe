"""Licences by their SPDX names, so that a machine can compare what owners allow."""

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from storage.errors import Refused, shown


def check_license(text: str) -> str:
    """An SPDX expression in its canonical spelling.

    Raises:
        Refused: ``E_LICENSE``; it is none of SPDX's.

    >>> check_license("apache-2.0 or mit")
    'Apache-2.0 OR MIT'
    """
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression as error:
        raise Refused(
            "E_LICENSE",
            f"{shown(text)} is no SPDX licence expression",
            "for example Apache-2.0, CC-BY-4.0, or LicenseRef-NAME for terms of your own",
            status=422,
            field="license",
        ) from error
