"""Every error that segnode raises on purpose.

SegnodeError
├── ConfigError              a configuration that cannot be used
├── CannotStart              a node that cannot start here and now
├── Refusal                  an object that is not kept; each maps to one DIMSE status and one STOW failure reason
│   ├── NotDicom             the bytes are not a DICOM object
│   ├── BadIdentifier        a UID that the object needs is missing or is not a UID
│   │   └── InvalidInstance  its own UID is not a UID
│   ├── Mismatch             the object is not what its envelope (command, file meta, URL) says
│   ├── ClassNotSupported    a SOP class that was not negotiated for it
│   ├── NotAuthorised        its sender may not store
│   ├── Duplicate            another object of its UID is held, which it must not replace
│   └── OutOfResources       no room to keep it now
│       └── ObjectTooLong    it is longer than what the node takes of one
├── BadQuery                 an identifier of C-FIND, C-MOVE or C-GET that its information model does not allow
├── BadRequest               an HTTP request that does not follow PS3.18, or the description of the API; a key of a search
├── TooLarge                 an HTTP request that is more than the node takes in one
├── UnsupportedMedia         an HTTP request whose body is of a media type that is not taken
├── AccessDenied             an HTTP request that is not let in
│   ├── NotAuthenticated     it does not show, or not validly, who asks
│   ├── NotAllowed           whoever asks may not do that
│   ├── WrongHost            it is for a host of another name
│   └── IssuerSilent         what signs tokens does not say with which keys
├── NotFound                 nothing is held under that name
├── NotAcceptable            held, but not in a representation the client accepts
├── StillNeeded              held, and needed by what goes on: it cannot be deleted now
├── NotAVolume               a series whose slices are not one volume
├── MixedPatients            images of one study that name several patients
├── NotASegmentation         a DICOM object that is no Segmentation, or lacks what one needs
├── OverlappingSegments      segments that share voxels, where each voxel can have one
├── CannotConvert            a SEG that cannot be had in the form that is asked for
├── CannotWrite              a file that cannot be written
├── UnreadablePixels         an image whose pixels cannot be decoded
├── BadDataset               a training set that cannot be read or made; the message names the file and the row
│   └── GridMismatch         labels that do not lie on the grid of the images
├── LabelError               a label dictionary or a labelmap that does not fit it
├── BadSegmentation          a SEG of our own that breaks a rule of the standard; it does not leave the node
├── Misplaced                labels of our own that are not where, or what, they should be; they do not leave the node
├── ModelFailed              the model raised, or returned what it must not
│   └── ModelCrashed         its process ended by itself: it may be begun again
├── Trouble                  what `segnode doctor` found: something that keeps a node from its work
├── BackupFailed             a backup that could not be made, or brought back
├── JobEnded                 a job that has ended, where one that goes on is needed, or the other way round
├── FindFailed               a peer that did not say what it has of a series
└── DeliveryFailed           a destination did not take an object
    ├── FormRefused          it will not take this form; another may do
    ├── AlreadyThere         it says that it holds an object of that UID, which remains to be seen
    ├── CannotAsk            it cannot be asked whether it holds an object
    │   └── BrokeOffWhenAsked  it broke off: that it never can be asked is not said by that
    ├── NotConfirmed         it said that it stored an object, and does not stand by it
    ├── CannotReadBack       it says that it holds an object, and does not give it out
    ├── DeliveryRefused      it will not take the object in any form; trying again is of no use
    └── DeliveryDeferred     it could not be reached or had no room; to be tried again
        ├── BrokeOff         it broke off before it answered, or answered what is no answer: it may have the object
        └── NotLetIn         it rejects the association for good, or breaks off when it is asked: until somebody there
                             lets this node in

A message says what is wrong, with which object or attribute, and what to do. No message carries a patient's data.
"""


class SegnodeError(Exception):
    """The root of segnode's own errors."""


class ConfigError(SegnodeError):
    """A configuration that cannot be used; the message starts with the path of the key."""


class CannotStart(SegnodeError):
    """A node that cannot start here and now."""


class Refusal(SegnodeError):
    """An object that is not kept.

    `attribute` is the keyword of the offending element where there is one; `identity` the object's SOP class and
    instance UIDs where they could be read.
    """

    def __init__(self, message: str, attribute: str | None = None) -> None:
        super().__init__(message)
        self.attribute = attribute
        self.identity: tuple[str, str] | None = None


class NotDicom(Refusal):
    """The bytes are not a DICOM object, or end in the middle of one."""


class BadIdentifier(Refusal):
    """A UID that the object needs is missing, or holds something else than a UID."""


class InvalidInstance(BadIdentifier):
    """The object's own UID is not a UID."""


class Mismatch(Refusal):
    """The object is not what its envelope says."""


class ClassNotSupported(Refusal):
    """The object is said to be of a SOP class that was not negotiated for it."""


class NotAuthorised(Refusal):
    """Whoever sends the object may not store."""


class Duplicate(Refusal):
    """Another object of that UID is held, and stays."""


class OutOfResources(Refusal):
    """No room to keep the object now."""


class ObjectTooLong(OutOfResources):
    """The object is longer than what the node takes of one; later it is no shorter."""


class BadQuery(SegnodeError):
    """An identifier that its information model does not allow (PS3.4 C.4); `attribute` is the keyword of what is wrong."""

    def __init__(self, message: str, attribute: str | None = None) -> None:
        super().__init__(message)
        self.attribute = attribute


class BadRequest(SegnodeError):
    """An HTTP request that does not follow PS3.18, or the description of the API; a key that is no value of its attribute."""


class TooLarge(SegnodeError):
    """An HTTP request, or a part of it, that is more than the node takes in one."""


class UnsupportedMedia(SegnodeError):
    """An HTTP request whose body is of a media type that is not taken; the message says which are."""


class AccessDenied(SegnodeError):
    """An HTTP request that is not let in."""


class NotAuthenticated(AccessDenied):
    """A request that shows no key or token, or one that is not valid; then `error` is the code of RFC 6750 3.1."""

    def __init__(self, message: str, error: str = "") -> None:
        super().__init__(message)
        self.error = error


class NotAllowed(AccessDenied):
    """A request of somebody who is known, and lacks `scope`."""

    def __init__(self, message: str, scope: str = "") -> None:
        super().__init__(message)
        self.scope = scope


class WrongHost(AccessDenied):
    """A request for a host of another name, to a node that lets in whoever is on its machine."""


class IssuerSilent(AccessDenied):
    """An issuer of tokens that does not say with which keys it signs."""


class NotFound(SegnodeError):
    """Nothing is held under that name."""


class NotAcceptable(SegnodeError):
    """What is held cannot be given in a representation that the client accepts."""


class StillNeeded(SegnodeError):
    """What is to be deleted is needed by a job or a delivery that goes on; the message names it."""


class NotAVolume(SegnodeError):
    """A series whose slices are not one volume."""


class MixedPatients(SegnodeError):
    """Images of one study that name several patients; the message names the images, and no patient."""


class NotASegmentation(SegnodeError):
    """A DICOM object that is no Segmentation, or lacks what one needs; the message names the attribute."""


class OverlappingSegments(SegnodeError):
    """Segments that share voxels, where each voxel can have one; the message names them and how many voxels."""


class CannotConvert(SegnodeError):
    """A SEG that cannot be had in the form that is asked for; the message says why, and what to ask for."""


class CannotWrite(SegnodeError):
    """A file that cannot be written, or that is there already; the message names it."""


class UnreadablePixels(SegnodeError):
    """An image whose pixels cannot be decoded."""


class BadDataset(SegnodeError):
    """A training set that cannot be read or made; the message names the file, and the row where it has rows."""


class GridMismatch(BadDataset):
    """Labels that do not lie on the grid of the images; the message shows both affines."""


class LabelError(SegnodeError):
    """A label dictionary that is wrong, or a labelmap that does not fit it."""


class BadSegmentation(SegnodeError):
    """A SEG of our own that breaks a rule of the standard."""


class Misplaced(SegnodeError):
    """Labels that are not in the patient's space what they were made of; the message names the segments."""


class ModelFailed(SegnodeError):
    """The model raised an error, or returned what it must not."""


class ModelCrashed(ModelFailed):
    """The model's process ended by itself; another may go further with the same volume."""


class Trouble(SegnodeError):
    """Something that keeps a node from its work; the message says what to do next."""


class BackupFailed(SegnodeError):
    """A backup that could not be made, or brought back."""


class JobEnded(SegnodeError):
    """A job that has ended where one that goes on is needed, or the other way round."""


class FindFailed(SegnodeError):
    """A peer that did not say what it has of a series."""


class DeliveryFailed(SegnodeError):
    """A destination did not take an object."""


class FormRefused(DeliveryFailed):
    """The destination will not take the object in this form; another form may do."""


class AlreadyThere(DeliveryFailed):
    """The destination says that it holds an object of that UID already."""


class CannotAsk(DeliveryFailed):
    """The destination does not say whether it holds an object."""


class BrokeOffWhenAsked(CannotAsk):
    """The destination broke off when it was asked; as some do to whom may not ask, and others that are ended just then."""


class NotConfirmed(DeliveryFailed):
    """The destination does not stand by what it said that it stored."""


class CannotReadBack(DeliveryFailed):
    """The destination holds an object, as it says, and does not give it out."""


class DeliveryRefused(DeliveryFailed):
    """The destination will not take the object in any form."""


class DeliveryDeferred(DeliveryFailed):
    """The destination could not be reached or had no room; the delivery is tried again."""


class BrokeOff(DeliveryDeferred):
    """The destination broke off, or answered what is no answer; whether it has the object is not known."""


class NotLetIn(DeliveryDeferred):
    """The destination rejects the association for good, as it says; somebody there may let this node in."""
